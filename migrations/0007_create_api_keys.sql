-- The keys that clients prove themselves with. Operators make and revoke them (`rollcall keys`); the API reads all that are
-- active into its memory every few seconds, so that no request waits for this table.
CREATE TABLE api_keys (
    -- The public part of the key: what lists and logs call it.
    id text NOT NULL,
    -- The program that has the key. Its commands are recorded under this name, whichever of its keys it used.
    client text NOT NULL,
    -- SHA-256 of the whole key, which is stored nowhere. It has 160 random bits, so a slow hash would protect nothing.
    hash bytea NOT NULL,
    -- What it allows. No closed list here: an older service ignores what it does not know.
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- NULL: never, which an operator said in so many words.
    expires_at timestamptz,
    -- Revoked keys stay, as the record of what was once allowed.
    revoked_at timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_hash_check CHECK (octet_length(hash) = 32),
    CONSTRAINT api_keys_scopes_check CHECK (cardinality(scopes) > 0)
);

-- The keys of one client.
CREATE INDEX api_keys_client_idx ON api_keys (client);
