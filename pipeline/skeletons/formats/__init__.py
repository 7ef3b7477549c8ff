"""Files of poses that other programs write, one format a module; `registry` lists them."""
