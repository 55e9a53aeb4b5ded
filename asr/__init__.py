"""Speech recognition: CTC with sparse-attention encoders."""
