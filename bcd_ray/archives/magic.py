"""Whether bytes begin like an image, whatever the name says."""

HEAD_BYTES = 136  # a DICOM file says what it is after 128

_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    *((order, "tif") for order in (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")),  # of slides too
    *((version, "gif") for version in (b"GIF87a", b"GIF89a")),
    *((start, "jp2") for start in (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51\0")),
    *((start, "jxl") for start in (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")),
    (b"II\xbc\x01", "jxr"),
    (b"ZISSRAWFILE\0", "czi"),
    (b"\xda\xce\xbe\n\0\0\0\0", "nd2"),
    (b"8BPS\0\x01", "psd"),
    (b"\2\0\0\0UL\4\0", "dcm"),  # without the usual preamble
)
_NOT_READ = {  # each by the name that people know
    "heic": "HEIC or AVIF",
    "jxl": "JPEG XL",
    "jxr": "JPEG XR",
    "czi": "a slide of Zeiss (CZI)",
    "nd2": "a file of Nikon's microscopes (ND2)",
    "psd": "Photoshop's own",
}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes of their second header: "BM" alone says too little
_HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")


def image_suffix(head: bytes) -> str | None:
    """The usual suffix of what begins with these bytes, the first `HEAD_BYTES` of it, or None where it is no image."""
    for magic, suffix in _MAGIC:
        if head.startswith(magic):
            return suffix
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "bmp"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "heic"
    return "dcm" if head[128:132] == b"DICM" else None


def kind_not_read(head: bytes) -> str | None:
    """What an image is called that begins with these bytes and that nothing here decodes."""
    return _NOT_READ.get(image_suffix(head) or "")
