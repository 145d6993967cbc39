"""From the bytes of one format to pixels; `images.decode` asks the right one."""
