package fsm

import (
	"fmt"
	"slices"
	"strings"

	"eboot"
)

// keptExpired is how long a token that has expired is remembered, in milliseconds: that
// the list shows why it does not work any more.
const keptExpired = 30 * 24 * 60 * 60 * 1000

// CreateToken lets whoever knows the secret of a token in. CreatedAt and CreatedBy are the
// header's, whatever Token says. The same token again changes nothing. Tokens that expired
// more than 30 days ago, by the header's time, are dropped in the same step. ErrConflict: another
// token has its name or id; ErrInvalid: it would have expired already; ErrTooLarge: there are
// eboot.MaxTokens.
type CreateToken struct {
	Header `json:"-"`
	Token  eboot.Token `json:"token"`
}

func (CreateToken) kind() kind { return kindCreateToken }

func (c CreateToken) check() error {
	if at := c.Token.ExpiresAt; !at.IsZero() && (at.UnixMilli() < 0 || at.UnixMilli() > latestTime) {
		return fmt.Errorf("token %.64q: expires at %s: want a time between 1970 and 9999: %w", c.Token.Name, at.UTC(), eboot.ErrInvalid)
	}
	return c.Token.Check()
}

// withoutHeader blanks what Apply takes from the header, so that a repeated request has
// the same content as the first.
func (c CreateToken) withoutHeader() CreateToken {
	blank := eboot.Token{}
	c.Token.CreatedAt, c.Token.CreatedBy = blank.CreatedAt, blank.CreatedBy
	c.Token.ExpiresAt = c.Token.ExpiresAt.UTC()
	return c
}

func (c CreateToken) apply(t *transition) error {
	token := c.withoutHeader().Token
	kept := slices.DeleteFunc(slices.Clone(t.next.tokens), func(old eboot.Token) bool {
		return !old.ExpiresAt.IsZero() && old.ExpiresAt.UnixMilli() < c.At-keptExpired
	})
	i, known := findToken(kept, token.ID)
	switch {
	case known && sameToken(kept[i], token):
		return nil
	case known:
		return fmt.Errorf("token %s: its id is that of token %s: %w", token.Name, kept[i].Name, eboot.ErrConflict)
	case slices.ContainsFunc(kept, func(old eboot.Token) bool { return old.Name == token.Name }):
		return fmt.Errorf("token %s: there is one of this name; `eboot token revoke %s` lets it go: %w", token.Name, token.Name, eboot.ErrConflict)
	case token.Expired(t.at):
		return fmt.Errorf("token %s: would have expired already: %w", token.Name, eboot.ErrInvalid)
	case len(kept) >= eboot.MaxTokens:
		return fmt.Errorf("token %s: there are %d tokens already, which is the limit; revoke some: %w", token.Name, len(kept), eboot.ErrTooLarge)
	}
	token.CreatedAt, token.CreatedBy = t.at, c.By
	t.next.tokens = slices.Insert(kept, i, token)
	t.changed = true
	until := "for ever"
	if !token.ExpiresAt.IsZero() {
		until = "until " + token.ExpiresAt.Format("2006-01-02 15:04 MST")
	}
	t.tell(eboot.Event{Kind: eboot.EventTokenCreated, Text: fmt.Sprintf("token %s (%s) is created, good %s", token.Name, token.Role, until)})
	return nil
}

// sameToken leaves out what the header gave.
func sameToken(a, b eboot.Token) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Role == b.Role && a.Digest == b.Digest && a.ExpiresAt.Equal(b.ExpiresAt)
}

// RevokeToken takes a token back: it lets nobody in from then on. It says which by the id or by
// the name, so that a repeated request has the same content when the token is gone.
// ErrNotFound: there is none.
type RevokeToken struct {
	Header `json:"-"`
	ID     string `json:"id,omitempty"`
	Name   string `json:"name,omitempty"` // from coverageVersion on
}

func (RevokeToken) kind() kind { return kindRevokeToken }

func (c RevokeToken) check() error {
	switch {
	case c.Name == "":
		return eboot.CheckTokenID(c.ID)
	case c.ID != "":
		return fmt.Errorf("token %.64q: is to be revoked by its id or by its name, not by both: %w", c.Name, eboot.ErrInvalid)
	}
	return eboot.CheckName("token", c.Name)
}

func (c RevokeToken) apply(t *transition) error {
	i, known := findToken(t.next.tokens, c.ID)
	if c.Name != "" {
		i = slices.IndexFunc(t.next.tokens, func(token eboot.Token) bool { return token.Name == c.Name })
		known = i >= 0
	}
	switch {
	case !known && c.Name != "":
		return fmt.Errorf("token %s: does not exist; `eboot token list` shows what does: %w", c.Name, eboot.ErrNotFound)
	case !known:
		return fmt.Errorf("token with id %s: does not exist; `eboot token list` shows what does: %w", c.ID, eboot.ErrNotFound)
	}
	name := t.next.tokens[i].Name
	t.next.tokens = slices.Delete(slices.Clone(t.next.tokens), i, i+1)
	t.changed = true
	t.tell(eboot.Event{Kind: eboot.EventTokenRevoked, Text: fmt.Sprintf("token %s is revoked", name)})
	return nil
}

// Token returns the token with an id, which may have expired. It allocates nothing.
func (s *State) Token(id string) (eboot.Token, bool) {
	i, known := findToken(s.tokens, id)
	if !known {
		return eboot.Token{}, false
	}
	return s.tokens[i], true
}

// Tokens returns all tokens by name, those that have expired too.
func (s *State) Tokens() []eboot.Token {
	return slices.SortedFunc(slices.Values(s.tokens), func(a, b eboot.Token) int { return strings.Compare(a.Name, b.Name) })
}

func findToken(tokens []eboot.Token, id string) (int, bool) {
	return slices.BinarySearchFunc(tokens, id, func(t eboot.Token, id string) int { return strings.Compare(t.ID, id) })
}
