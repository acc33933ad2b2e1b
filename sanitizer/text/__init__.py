"""What needs the prompt's text: words, deobfuscation, replacements, rewriting."""
