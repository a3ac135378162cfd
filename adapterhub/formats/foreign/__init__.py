"""LoRA files of other programs: what their names mean, and how their tensors become PEFT's and back.

One file a program under `programs/`, one file a family of models under `tables/`. A program is chosen by what the names
are (`recognition`); every name of a file must be one of that program, and every tensor gets its place and its scale, or
the file is refused by name. No tensor's values change, except where a convolution's `lora_mid` is folded.
"""
