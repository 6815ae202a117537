"""A guest that never stands still while every CA and key of its site is replaced: `make rollover`."""
