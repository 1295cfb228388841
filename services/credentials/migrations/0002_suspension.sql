-- expand
-- Nothing is vended to a suspended deployment; what is lent to it stays.
ALTER TABLE deployments ADD COLUMN suspended_at timestamptz;
