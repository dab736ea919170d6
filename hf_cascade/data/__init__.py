"""Text as the stages read it: document order, packing into full windows, and where a stage stopped."""
