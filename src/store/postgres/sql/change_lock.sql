-- The first step of each change: from here on the conversation's members and log are ours. Each
-- statement after it sees what was committed before the lock.
select kind, title, member_count
from conversations
where id = $1
for no key update
