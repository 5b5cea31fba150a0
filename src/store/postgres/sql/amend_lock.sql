-- The first step of each change of a message: the conversation of message $1 is ours from here on,
-- and each statement after it sees what was committed before the lock.
select members_version
from conversations
where id = (select conversation_id from messages where id = $1)
for no key update
