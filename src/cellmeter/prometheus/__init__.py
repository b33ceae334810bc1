"""What runs that go on tell a Prometheus server, and the files that such a server is set up with.

``names`` what each metric is called; ``watched`` one run as it goes on; ``totals`` what the user's code said, summed up;
``exposition`` all runs as metric families; ``serving`` the endpoint; ``config`` and ``dashboard`` the files.
"""
