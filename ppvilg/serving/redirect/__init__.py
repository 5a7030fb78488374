"""For clients whose hosts are written into them: a proxy on this machine that leads those hosts, and no other, here."""
