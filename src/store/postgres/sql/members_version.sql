select members_version
from conversations
where id = $1
