"""The log's way to a SIEM: every entry, at least once under one id, and the proof that it arrived unaltered.

    document.py    one log entry as one ECS document, with the entry itself inside
    mapping.py     the types of its fields
    selection.py   which entries a sink gets, and what of them
    sink.py        what every receiver must do, and how it may fail
    cursor.py      how far a sink has got, durably
    shipper.py     reads the log, feeds one sink, backs off, quarantines; one for each sink
    turns.py       documents and lines, made a little at a time and behind whoever waits for an answer
    quarantine.py  what a receiver refused for ever
    peer.py        TLS to a receiver · https.py one request at a time · secrets.py files that only we can read
    syslog.py      RFC 5425 · relp.py, relp_session.py RELP · splunk.py HEC · webhook.py, webhook_signature.py
    line_file.py   a file with rotation
    reconcile_lines.py  the same question of a file of lines · verify_line.py is this one line ours?
    formats/       a document as one line of JSON, CEF, LEEF, OCSF or syslog
    elastic.py     Elasticsearch: bulk into time-named indices, reading back · elastic_http.py bounds its answers
    elastic_query.py an audit query in its words · elastic_counting.py how many fit
    reconcile.py   does the SIEM hold exactly what the log holds?
    status.py      the bounds of a delivery, and what is known of it

The log itself is the spool: a sink that is down for a week costs a cursor, not memory.
"""
