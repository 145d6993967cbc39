"""What a shard is, and from its bytes to pixels within limits.

Public: `shards.read_shards`, `images.decode`, `isolation.decode_apart`, `packing.pack`.
"""
