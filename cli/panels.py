"""Under which headings the commands stand in `bulkhead --help`."""

MACHINE = "This machine"
TENANT = "Tenants and what is theirs"
LEND = "Grants at outside providers, lent to deployments"
WATCH = "What happened, and help"
ORDER = (MACHINE, TENANT, LEND, WATCH)
