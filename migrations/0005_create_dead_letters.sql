-- Commands that could not be applied, and the later commands of the same users, in order, until an operator decides.

-- One row per user with an open dead letter. It is the lock between workers and operators: a batch holds the rows of its
-- users FOR SHARE (in the order of user_id) while it parks, and a replay or discard holds one FOR UPDATE while it applies,
-- and deletes it with the user's last letter. Users without one cost a batch nothing.
CREATE TABLE held_users (
    user_id uuid NOT NULL,
    -- The user's first open letter: what a parked command's status names as the one that it waits behind.
    command_id uuid NOT NULL,
    CONSTRAINT held_users_pkey PRIMARY KEY (user_id)
);

CREATE TABLE dead_letters (
    -- The position: a user's letters are recorded under the lock of its row above, so they are numbered in order.
    id bigint GENERATED ALWAYS AS IDENTITY,
    -- Both absent for a message without a readable id; the user alone when only the id could be read. Without a user
    -- nothing is blocked.
    command_id uuid,
    user_id uuid,
    -- The wire name, for filters; the payload may be large, and need not be JSON.
    type text,
    -- The message as it came, and what a replay decodes: a later build may understand what this one does not.
    payload bytea NOT NULL,
    -- A message that is no command is known by its content when it comes again.
    content_hash bytea NOT NULL GENERATED ALWAYS AS (sha256(payload)) STORED,
    -- For the operator: what the server said, what cannot be decoded, or that it waits behind another.
    reason text NOT NULL,
    -- Who is to blame, if a statement raised; commands with the same fault are replayed together by it.
    sqlstate text,
    -- How often it failed; 0 for one that has never been tried because it waits.
    attempts integer NOT NULL,
    -- W3C trace context of the message, to find the request that it came from.
    traceparent text,
    tracestate text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    -- Of the last failure, or the last time that the same message came.
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    -- Closed letters stay, as the record of what was done.
    state text NOT NULL DEFAULT 'open',
    closed_at timestamptz,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (id),
    CONSTRAINT dead_letters_state_check CHECK (state IN ('open', 'replayed', 'discarded')),
    CONSTRAINT dead_letters_closed_at_check CHECK ((state = 'open') = (closed_at IS NULL)),
    CONSTRAINT dead_letters_user_id_check CHECK (user_id IS NULL OR command_id IS NOT NULL),
    CONSTRAINT dead_letters_attempts_check CHECK (attempts >= 0)
);

-- A command is recorded once, however often its message comes.
CREATE UNIQUE INDEX dead_letters_command_id_key ON dead_letters (command_id);
-- And so is a message that is no command, until somebody dealt with it.
CREATE UNIQUE INDEX dead_letters_content_hash_key ON dead_letters (content_hash)
    WHERE command_id IS NULL AND state = 'open';
-- A user's open letters in order, and the count of all.
CREATE INDEX dead_letters_open_idx ON dead_letters (user_id, id) WHERE state = 'open';

-- Closed ones, to be pruned.
CREATE INDEX dead_letters_closed_at_idx ON dead_letters (closed_at) WHERE closed_at IS NOT NULL;

-- Commands that came again and are being tried alone. Written before the try and removed after it, so that a row which is
-- found belongs to a try that ended with its worker.
CREATE TABLE suspects (
    command_id uuid NOT NULL,
    attempts integer NOT NULL,
    last_tried_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT suspects_pkey PRIMARY KEY (command_id)
);
