package fsm

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"eboot"
)

// The part of the model that is about operators.

func (m *model) changeTokens(c Command) (changed bool, err error) {
	switch c := c.(type) {
	case Note:
		return true, nil
	case RevokeToken:
		for id, token := range m.tokens {
			if id == c.ID || token.Name == c.Name {
				delete(m.tokens, id)
				return true, nil
			}
		}
		return false, eboot.ErrNotFound
	case CreateToken:
		kept := map[string]eboot.Token{}
		for id, old := range m.tokens {
			if old.ExpiresAt.IsZero() || !old.ExpiresAt.Add(30*24*time.Hour).Before(c.time()) {
				kept[id] = old
			}
		}
		token := c.Token
		token.CreatedAt, token.CreatedBy = c.time(), c.By
		if old, ok := kept[token.ID]; ok {
			old.CreatedAt, old.CreatedBy = token.CreatedAt, token.CreatedBy
			if reflect.DeepEqual(old, token) {
				return false, nil
			}
			return false, eboot.ErrConflict
		}
		for _, old := range kept {
			if old.Name == token.Name {
				return false, eboot.ErrConflict
			}
		}
		if !token.ExpiresAt.IsZero() && !c.time().Before(token.ExpiresAt) {
			return false, eboot.ErrInvalid
		}
		m.tokens = kept
		m.tokens[token.ID] = token
		return true, nil
	}
	return false, errors.New("another command")
}

var (
	drawActor = rapid.SampledFrom([]eboot.Actor{{}, operator, {Name: "uid 0", Via: eboot.ViaSocket}, {Name: "ci", Via: eboot.ViaToken, From: "10.1.2.3"}})
	drawToken = rapid.Custom(func(t *rapid.T) eboot.Token {
		expires := rapid.SampledFrom([]int64{0, 1, 5, keptExpired, 5 * keptExpired}).Draw(t, "expires")
		return tokenOf(rapid.SampledFrom([]byte{1, 2, 3}).Draw(t, "id"), rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "name"), eboot.RoleViewer, expires)
	})
)

func drawTokenCommand(t *rapid.T, h Header, k kind) Command {
	switch k {
	case kindCreateToken:
		return CreateToken{Header: h, Token: drawToken.Draw(t, "token")}
	case kindRevokeToken:
		if token := drawToken.Draw(t, "token"); rapid.Bool().Draw(t, "by name") {
			return RevokeToken{Header: h, Name: token.Name}
		} else {
			return RevokeToken{Header: h, ID: token.ID}
		}
	}
	if h.By.IsZero() {
		h.By = operator
	}
	return Note{Header: h, Kind: rapid.SampledFrom([]eboot.EventKind{eboot.EventLeaderTransferred, eboot.EventSnapshotSaved}).Draw(t, "noted"), Text: "a deed"}
}

func compareTokens(t *rapid.T, s *State, m *model) {
	tokens := s.Tokens()
	if len(tokens) != len(m.tokens) || !slices.IsSortedFunc(tokens, func(a, b eboot.Token) int { return strings.Compare(a.Name, b.Name) }) {
		t.Fatalf("tokens %+v, model %+v", tokens, m.tokens)
	}
	for _, id := range []byte{1, 2, 3, 4} {
		id := tokenOf(id, "", "", 0).ID
		want, known := m.tokens[id]
		if got, ok := s.Token(id); ok != known || !reflect.DeepEqual(got, want) {
			t.Fatalf("token %s: %+v %v, model %+v %v", id, got, ok, want, known)
		}
	}
}

// checkAudit asks that whatever somebody has changed says so, and by which request.
func checkAudit(t *rapid.T, s *State, h Header, r *Result) {
	told := s.EventsAfter(s.Index() - 1)
	if s.Version() >= operatorsVersion && r.Changed && !h.By.IsZero() && len(told) == 0 {
		t.Fatalf("%+v changed something and left no event", h)
	}
	want := eboot.Event{By: h.By, Request: h.RequestID}
	if s.Version() < operatorsVersion {
		want = eboot.Event{}
	}
	for _, e := range told {
		if e.By != want.By || e.Request != want.Request {
			t.Fatalf("event %+v of %+v at version %d", e, h, s.Version())
		}
	}
}
