"""Faults by step: what is injected into scoring runs (`scenarios`), where (`stage`, `store`, `hooks`), and what must
hold after each (`case`)."""
