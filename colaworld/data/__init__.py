"""From video files to clips. Import the parts by name: loader, sources, decode, recording."""
