"""An encoder and concepts in, a sanitizer and its report out."""
