package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"eboot"
)

// Tokens let programs and people use the API over TCP.
type Tokens interface {
	// Tokens returns all tokens by name, expired ones included.
	Tokens() []eboot.Token
	// CreateToken enters a token of which t has all but what the server adds.
	// eboot.ErrConflict: its name is taken; eboot.ErrTooLarge: there are too many.
	CreateToken(ctx context.Context, w Write, t eboot.Token) (WriteResult, error)
	// RevokeToken takes the token with this id or name out; eboot.ErrNotFound.
	RevokeToken(ctx context.Context, w Write, token string) (WriteResult, error)
}

// TokenRequest is the body of POST /v1/tokens. Who creates a token makes its text
// (eboot.FormatToken) and keeps it: the servers get the digest of it.
type TokenRequest struct {
	ID        string       `json:"id"`
	Name      string       `json:"name"`
	Role      eboot.Role   `json:"role"`
	Digest    eboot.Digest `json:"digest"`
	ExpiresAt time.Time    `json:"expires_at,omitzero"` // zero: never
}

// TokenInfo is what may be seen of a token.
type TokenInfo struct {
	ID        string      `json:"id"`
	Name      string      `json:"name"`
	Role      eboot.Role  `json:"role"`
	CreatedAt time.Time   `json:"created_at"`
	CreatedBy eboot.Actor `json:"created_by,omitzero"`
	ExpiresAt time.Time   `json:"expires_at,omitzero"`
}

func (s *Server) tokens(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	infos := []TokenInfo{}
	for _, t := range s.backend.Tokens() {
		infos = append(infos, TokenInfo{ID: t.ID, Name: t.Name, Role: t.Role, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, ExpiresAt: t.ExpiresAt})
	}
	return writeJSON(w, http.StatusOK, infos)
}

func (s *Server) createToken(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	var body TokenRequest
	if err := readJSON(r, &body); err != nil {
		return err
	}
	t := eboot.Token{ID: body.ID, Name: body.Name, Role: body.Role, Digest: body.Digest, ExpiresAt: body.ExpiresAt}
	if err := t.Check(); err != nil {
		return err
	}
	result, err := s.backend.CreateToken(r.Context(), write, t)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	result, err := s.backend.RevokeToken(r.Context(), write, r.PathValue("token"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

// Tokens returns all tokens by name, expired ones included.
func (c *Client) Tokens(ctx context.Context) (tokens []TokenInfo, err error) {
	return tokens, c.do(ctx, call{method: "GET", path: "/v1/tokens", query: c.state()}, &tokens)
}

// CreateToken enters a token whose text the caller has made.
func (c *Client) CreateToken(ctx context.Context, t TokenRequest) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: "/v1/tokens", body: t, write: true}, &r)
}

// RevokeToken takes the token with this id or name out: it is worth nothing from then on.
func (c *Client) RevokeToken(ctx context.Context, token string) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "DELETE", path: "/v1/tokens/" + url.PathEscape(token), write: true}, &r)
}

// Whoami returns who the server takes the client for.
func (c *Client) Whoami(ctx context.Context) (r Caller, err error) {
	return r, c.do(ctx, call{method: "GET", path: "/v1/whoami"}, &r)
}
