//! Layers and their merging, case by case.
