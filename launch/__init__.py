"""Set-up, Horovod build and pre-job checks: what runs once per job or machine."""
