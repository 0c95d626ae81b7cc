"""From video files to clips. Import the parts by name: loader, sources, video_reader, episode_stream."""
