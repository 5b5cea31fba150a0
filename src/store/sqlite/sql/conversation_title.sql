update conversations set title = ?2, info_seq = ?3 where id = ?1
