"""The world of 128 pixels: eighty objects, six drawing styles, fifteen backgrounds, captions as people write them."""
