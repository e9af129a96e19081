"""What runs once per job or machine: the set-up, the Horovod build and the checks before a job."""
