"""Use trained models: classify images, find similar photos, and measure speed."""
