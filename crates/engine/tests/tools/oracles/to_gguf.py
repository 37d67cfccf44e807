#!/usr/bin/env python3
"""Runs llama.cpp's convert_hf_to_gguf.py on each oracle: to_gguf.py LLAMA_CPP_DIR OUTDIR [name ...]
Only change: get_vocab_base_pre() is answered from meta.json (our tiny tokenizers have no known hash)."""
import json, os, sys, traceback
os.environ["CUDA_VISIBLE_DEVICES"] = ""; os.environ["HF_HUB_OFFLINE"] = "1"
L, OUT, names = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.path.insert(0, L); sys.path.insert(0, L + "/gguf-py")
import logging; logging.disable(logging.INFO)
import convert_hf_to_gguf as C
from conversion import base
from conversion import gemma, phi
phi.Phi3MiniModel.set_vocab = lambda self: self._set_vocab_gpt2()
gemma.Gemma4Model.set_vocab = lambda self: self._set_vocab_gpt2()   # byte-level stand-in; the real one is SPM-BPE
def dequantize(src, dst):
    """Copies a GGUF with every packed tensor as F32."""
    import gguf, numpy as np
    from gguf.quants import dequantize as unpack
    reader = gguf.GGUFReader(src)
    writer = gguf.GGUFWriter(dst, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture": continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for t in reader.tensors:
        data = t.data if t.tensor_type.name in ("F32", "I32") else unpack(t.data, t.tensor_type).astype(np.float32)
        writer.add_tensor(t.name, np.ascontiguousarray(data))
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()

for n in names or sorted(os.listdir(OUT)):
    d = f"{OUT}/{n}"
    if not os.path.exists(d + "/meta.json"): continue
    pre = json.load(open(d + "/meta.json"))["pre"]
    base.TextModel.get_vocab_base_pre = lambda self, tok, pre=pre: pre
    src = d + "/orig" if os.path.isdir(d + "/orig") else d
    sys.argv = ["convert", src, "--outfile", f"{d}/model-f32.gguf", "--outtype", "f32"] + (["--no-mtp"] if n.startswith("qwen3_5") else [])
    try:
        C.main()
        import gguf
        if any(t.tensor_type.name not in ("F32", "I32") for t in gguf.GGUFReader(f"{d}/model-f32.gguf").tensors):
            os.replace(f"{d}/model-f32.gguf", f"{d}/model-mxfp4.gguf")     # deepseek_v4: the converter insists on MXFP4 experts
            dequantize(f"{d}/model-mxfp4.gguf", f"{d}/model-f32.gguf")
        print(f"{n:16s} OK {os.path.getsize(d + '/model-f32.gguf')}")
    except BaseException as ex:
        print(f"{n:16s} FAILED {ex!r}"[:400]); traceback.print_exc(limit=-3)
