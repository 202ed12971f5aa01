-- Which command came first under a client's Idempotency-Key. A key counts for a window of hours after it; later it is
-- replaced by the next command under it, or pruned.
CREATE TABLE idempotency_keys (
    -- SHA-256 of the principal and the key: short whatever the client sends, and nobody's key can be read here.
    key bytea NOT NULL,
    -- SHA-256 of what was asked for, so that another request under the same key is told from a retry.
    fingerprint bytea NOT NULL,
    -- Whose outcome a retry gets. No foreign key: commands are dropped by the day, without a look at this table.
    command_id uuid NOT NULL,
    -- When the first command was accepted, not applied: the window is between two requests of a client, and a retry that
    -- had to wait in its queue is still one. The API's clock, within what the worker knows by the database's: not in the
    -- future, and not before the command can have been published.
    accepted_at timestamptz NOT NULL,
    -- When the worker claimed the key, by this server's clock: decides what is pruned.
    claimed_at timestamptz NOT NULL DEFAULT now(),
    -- The command of an earlier window. Retries of it that come late, and a first command that comes after that of the next
    -- window, find it here.
    earlier_fingerprint bytea,
    earlier_command_id uuid,
    earlier_accepted_at timestamptz,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key)
);

-- Finds the keys that are old enough to go.
CREATE INDEX idempotency_keys_claimed_at_idx ON idempotency_keys (claimed_at);
