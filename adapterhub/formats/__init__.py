"""What files say: safetensors, the configs of PEFT, base weights, manifests, cards and licences.

Whether an adapter is sound, or where it is kept, belongs in `trust` and `library`.
"""
