-- contract: after 0004
-- The same bytes as before, in less time: a statement of a function that cannot be inlined is
-- started anew for each event, which took more than all the rest of its hash.

CREATE OR REPLACE FUNCTION audit_resources(resources jsonb) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    named record;
    fields bytea := '';
    many integer := 0;
BEGIN
    FOR named IN SELECT key, value FROM jsonb_each_text(resources) ORDER BY convert_to(key, 'UTF8')
    LOOP
        fields := fields || audit_field(named.key) || audit_field(named.value);
        many := many + 1;
    END LOOP;
    RETURN audit_field(many::text) || fields;
END $$;
