from bcd_ray import storage
import time
def test_gets(s3):
    for size in (40_000, 9<<20):
        uri=f"{s3}/g{size}"; storage.write_bytes(uri,bytes(size)); (o,)=storage.list_objects(uri)
        n=[]; f=lambda **k: n.append(1)
        storage._s3().meta.events.register("before-send.s3.GetObject",f)
        t=time.time()
        with storage.open_stream(o) as st: assert len(st.read())==size
        storage._s3().meta.events.unregister("before-send.s3.GetObject",f)
        print(size,len(n),"GETs",round(time.time()-t,2),"s")
