"""What trains or shrinks: backbones, LoRA, students, int8."""
