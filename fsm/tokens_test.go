package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
)

// raised is a log of a cluster at the newest version.
func raised(t testing.TB) *log {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	return l
}

func (l *log) create(token eboot.Token) *Result {
	l.t.Helper()
	return l.apply(CreateToken{Header: l.by(), Token: token})
}

func TestTokens(t *testing.T) {
	l := raised(t)
	l.must(Init{Header: l.header(), ClusterID: "c"})
	ci, ops := tokenOf(2, "ci", eboot.RolePublisher, 1_800_000_000_123), tokenOf(1, "ops", eboot.RoleAdmin, 0)
	before := l.machine.State()
	for _, token := range []eboot.Token{ci, ops} {
		token.CreatedAt, token.CreatedBy = time.UnixMilli(77), eboot.Actor{Name: "mallory", Via: eboot.ViaToken}
		if r := l.create(token); r.Err != nil || !r.Changed || r.Generation != before.Generation() {
			t.Fatalf("create %s: %+v", token.Name, r)
		}
	}
	s := l.machine.State()
	got, ok := s.Token(ci.ID)
	if !ok || got.CreatedBy != operator || !got.CreatedAt.Equal(time.UnixMilli(1_700_000_003_000)) || !sameToken(got, ci) {
		t.Fatalf("%+v %v", got, ok)
	}
	if all := s.Tokens(); len(all) != 2 || all[0].Name != "ci" || all[1].Name != "ops" || len(before.Tokens()) != 0 {
		t.Fatalf("tokens %+v, before %+v", all, before.Tokens())
	}
	if s.MinimumVersion() != operatorsVersion {
		t.Errorf("needs version %d", s.MinimumVersion())
	}
	events := s.EventsAfter(before.Index())
	for i, want := range []string{"token ci (publisher) is created, good until 2027-01-15 08:00 UTC", "token ops (admin) is created, good for ever"} {
		if e := events[i]; e.Kind != eboot.EventTokenCreated || e.Text != want || e.By != operator {
			t.Errorf("%+v, want %q", e, want)
		}
	}
	// In another zone it is the same time, and the same request.
	again := ci
	again.ExpiresAt = ci.ExpiresAt.In(time.FixedZone("x", 3600))
	if r := l.create(again); r.Err != nil || r.Changed {
		t.Errorf("the same again: %+v", r)
	}
	one, _, _ := decode(mustEncode(t, CreateToken{Header: Header{RequestID: "a"}, Token: ci}))
	other, _, _ := decode(mustEncode(t, CreateToken{Header: Header{RequestID: "a"}, Token: again}))
	again.CreatedAt, again.CreatedBy = time.UnixMilli(1), operator
	third, _, _ := decode(mustEncode(t, CreateToken{Header: Header{RequestID: "a"}, Token: again}))
	if one != other || one != third {
		t.Errorf("%+v, %+v and %+v are encoded", one, other, third)
	}
	for name, spoil := range map[string]func(*eboot.Token){
		"another role": func(t *eboot.Token) { t.Role = eboot.RoleAdmin }, "another name": func(t *eboot.Token) { t.Name = "x" },
		"another digest": func(t *eboot.Token) { t.Digest[0]++ }, "another end": func(t *eboot.Token) { t.ExpiresAt = time.Time{} },
		"the name alone": func(t *eboot.Token) { *t = tokenOf(9, "ci", eboot.RoleAdmin, 0) },
	} {
		token := ci
		spoil(&token)
		if r := l.create(token); !errors.Is(r.Err, eboot.ErrConflict) || r.Changed {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := l.apply(RevokeToken{Header: l.by(), ID: tokenOf(8, "x", "", 0).ID}); !errors.Is(r.Err, eboot.ErrNotFound) {
		t.Errorf("revoke of nothing: %+v", r)
	}
	if r := l.apply(RevokeToken{Header: l.by(), Name: "x"}); !errors.Is(r.Err, eboot.ErrNotFound) || !strings.Contains(r.Err.Error(), "token x: does not exist") {
		t.Errorf("revoke of nothing by name: %+v", r)
	}
	r := l.must(RevokeToken{Header: l.by(), ID: ci.ID})
	after := l.machine.State()
	if _, ok := after.Token(ci.ID); ok || r.Generation != before.Generation() {
		t.Errorf("revoked: %v, %+v", ok, r)
	}
	if _, ok := s.Token(ci.ID); !ok {
		t.Error("the older state changed")
	}
	if told := after.EventsAfter(after.Index() - 1); len(told) != 1 || told[0].Kind != eboot.EventTokenRevoked || told[0].Text != "token ci is revoked" {
		t.Errorf("%+v", told)
	}
	// What lets somebody in is in no event.
	for _, e := range after.Events() {
		for _, token := range []eboot.Token{ci, ops} {
			if strings.Contains(e.Text, token.Digest.String()) || strings.Contains(e.Text, token.ID) || strings.Contains(e.Text, token.Digest.Short()) {
				t.Errorf("%q tells of %s", e.Text, token.Name)
			}
		}
	}
	// A backup from before it was revoked does not bring it back.
	restored := reread(t, s.ForRestore(after, 0, l.by()))
	if names := restored.Tokens(); len(names) != 1 || names[0].Name != "ops" {
		t.Errorf("restored with %+v", names)
	}
}

func TestTokensThatHaveExpired(t *testing.T) {
	l := raised(t)
	now := l.header().At
	for i, expires := range []int64{now + 5000, now + 5_000_000, 0} {
		if r := l.create(tokenOf(byte(i+1), fmt.Sprint("t", i), eboot.RoleViewer, expires)); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for name, c := range map[string]struct {
		at   int64
		left []string
	}{
		"a day later": {now + 86_400_000, []string{"new", "t0", "t1", "t2"}}, "on the last millisecond": {now + 5000 + keptExpired, []string{"new", "t0", "t1", "t2"}},
		"one later": {now + 5001 + keptExpired, []string{"new", "t1", "t2"}}, "long after": {now + 10*keptExpired, []string{"new", "t2"}},
	} {
		m := New(l.machine.State())
		m.Apply(l.index+1, mustEncode(t, CreateToken{Header: Header{RequestID: "x", At: c.at}, Token: tokenOf(9, "new", eboot.RoleViewer, 0)}))
		var names []string
		for _, token := range m.State().Tokens() {
			names = append(names, token.Name)
		}
		if !slices.Equal(names, c.left) {
			t.Errorf("%s there are %v", name, names)
		}
	}
	// The name of one that is dropped is free.
	m := New(l.machine.State())
	h := Header{RequestID: "x", At: now + 10*keptExpired}
	if r := m.Apply(l.index+1, mustEncode(t, CreateToken{Header: h, Token: tokenOf(9, "t0", eboot.RoleViewer, 0)})).(*Result); r.Err != nil {
		t.Error(r.Err)
	}
	if r := l.create(tokenOf(7, "late", eboot.RoleViewer, now)); !errors.Is(r.Err, eboot.ErrInvalid) {
		t.Errorf("expired from the beginning: %+v", r)
	}
}

func TestTokensAreBounded(t *testing.T) {
	l := raised(t)
	for i := range eboot.MaxTokens + 1 {
		id, digest, err := eboot.ParseToken(eboot.FormatToken([8]byte{byte(i), byte(i >> 8)}, [32]byte{1}))
		if err != nil {
			t.Fatal(err)
		}
		r := l.create(eboot.Token{ID: id, Name: fmt.Sprint("t", i), Role: eboot.RoleViewer, Digest: digest})
		if full := i == eboot.MaxTokens; errors.Is(r.Err, eboot.ErrTooLarge) != full || full == r.Changed {
			t.Fatalf("token %d: %+v", i, r)
		}
	}
	s := l.machine.State()
	if again := reread(t, s); len(again.Tokens()) != eboot.MaxTokens || again.Digest() != s.Digest() {
		t.Errorf("%d tokens are read again", len(again.Tokens()))
	}
	id := s.Tokens()[700].ID
	if n := testing.AllocsPerRun(100, func() { s.Token(id) }); n != 0 {
		t.Errorf("looking one up allocates %v times", n)
	}
}

func TestBadTokensAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*eboot.Token){
		"no name": func(t *eboot.Token) { t.Name = "" }, "no id": func(t *eboot.Token) { t.ID = "" }, "no role": func(t *eboot.Token) { t.Role = "root" },
		"no digest": func(t *eboot.Token) { t.Digest = eboot.Digest{} }, "before 1970": func(t *eboot.Token) { t.ExpiresAt = time.UnixMilli(-1) },
		// In UTC, in which it is written, that is the year 10000.
		"after 9999": func(t *eboot.Token) {
			t.ExpiresAt = time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("x", -3600))
		},
	} {
		token := tokenOf(1, "ci", eboot.RoleAdmin, 0)
		spoil(&token)
		if _, err := (CreateToken{Header: Header{RequestID: "a", By: operator}, Token: token}).Encode(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		l := raised(t)
		entry := fmt.Appendf(nil, "\x15\x01"+`{"request_id":"x","at_ms":1,"change":%s}`, mustEncodeChange(t, CreateToken{Token: token}))
		if r := l.applyEntry(entry); !errors.Is(r.Err, eboot.ErrInvalid) || r.Changed {
			t.Errorf("%s from outside: %+v", name, r)
		}
		reread(t, l.machine.State())
	}
	for _, wrong := range []RevokeToken{{}, {ID: "x"}, {Name: "a b"}, {ID: tokenOf(1, "x", "", 0).ID, Name: "x"}} {
		wrong.Header = Header{RequestID: "a"}
		if _, err := wrong.Encode(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
}

func TestReadStateRefusesBadTokens(t *testing.T) {
	l := raised(t)
	for i := range byte(2) {
		l.create(tokenOf(i, fmt.Sprint("t", i), eboot.RoleViewer, 0))
	}
	for name, spoil := range map[string]func(s *State){
		"order": func(s *State) { slices.Reverse(s.tokens) }, "twice": func(s *State) { s.tokens[1] = s.tokens[0] },
		"many": func(s *State) { s.tokens = make([]eboot.Token, eboot.MaxTokens+1) }, "left as is": func(*State) {},
	} {
		s := *l.machine.State()
		s.tokens = slices.Clone(s.tokens)
		spoil(&s)
		if _, err := ReadState(bytes.NewReader(snapshotOf(t, newState(s)))); errors.Is(err, eboot.ErrInvalid) != (name != "left as is") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
