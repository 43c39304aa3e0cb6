"""Results of `ssd bench` and `ssd simulate` as one HTML page (`ssd report`)."""
