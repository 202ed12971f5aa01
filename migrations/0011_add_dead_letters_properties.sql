-- Messages that did not arrive as they were published, because the client library could not have parsed them or because they
-- were too long.
ALTER TABLE dead_letters
    -- The octets of the AMQP properties, flags first, when they could not be parsed; the first 3 KiB.
    ADD COLUMN properties bytea,
    -- The size of the body in bytes, when only its beginning is in the payload. Such a letter cannot be replayed.
    ADD COLUMN size bigint;
