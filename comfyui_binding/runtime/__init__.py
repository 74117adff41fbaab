"""One sampling run: settings, batch layout and the denoiser call. Knows no architecture."""
