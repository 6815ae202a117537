package main

import "testing"

// TestPermits: what section 3 takes and refuses, by which code of section 9.
func TestPermits(t *testing.T) {
	v := load(t).Permits
	key, id, err := readPermitKey(v.PermitKey)
	if err != nil || id != v.KeyID {
		t.Fatal(id, err)
	}
	log, err := parseLogKey(v.LogKey)
	if err != nil {
		t.Fatal(err)
	}
	j := judge{key, id, log, v.Ports, v.Seals, v.CRLNumber, v.Meets}
	if len(v.Good) == 0 || len(v.Refused) == 0 {
		t.Fatal("no permits")
	}
	for _, g := range v.Good {
		p, err := j.admit(g.Permit, v.Now, v.Source, v.Destination)
		if err != nil {
			t.Errorf("%s: %v", g.Entry, err)
		}
		same(t, "entry", p.entry, []byte(g.Entry))
		same(t, "leaf hash", leafHash(p.entry), g.LeafHash)
	}
	for _, r := range v.Refused {
		if _, err := j.admit(r.Permit, v.Now, v.Source, v.Destination); err != refused(r.Code) {
			t.Errorf("%s: %v, and not %s", r.Why, err, r.Code)
		}
	}
}
