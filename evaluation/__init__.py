"""Measuring: prompt sets in, figures out. Uses the sanitizer, is used by nothing."""
