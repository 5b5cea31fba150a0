-- Writes wait behind this while it waits, for example for a dump: rather refused than that.
set local lock_timeout = '2s';
-- A batch's row stays whole on its page while it fits there: moved out it is a second table and index
-- to write. And it is not compressed: ids are random.
alter table outbox set (toast_tuple_target = 8160);
alter table outbox
    alter column conversation_ids set storage external,
    alter column message_ids set storage external,
    alter column seqs set storage external,
    alter column kinds set storage external;
