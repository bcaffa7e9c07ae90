"""What revision 0008 says of every trigger's function on PostgreSQL: where it looks for the tables it asks.

A function looks where its caller does, and there a temporary table comes before all others: who makes one
called `job` tells the triggers what jobs there are. From now on temporary tables come last. SQLite's triggers
see the tables of their own file only.
"""

from __future__ import annotations

FIX = (
    "DO $$ DECLARE made record; BEGIN FOR made IN SELECT pg_proc.oid::regprocedure AS named FROM pg_proc "
    "JOIN pg_namespace ON pg_namespace.oid = pronamespace WHERE nspname = current_schema() "
    "AND proname LIKE 'affinery\\_%' LOOP EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', "
    "made.named, current_schema()); END LOOP; END $$"
)
