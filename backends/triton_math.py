from importlib import resources
def math_for(source: str) -> str:
    t=(resources.files("attncompiler.templates.triton")/"math.py").read_text()
    return t[t.index("@triton.jit"):]
