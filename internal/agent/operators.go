package agent

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"fmt"

	"github.com/google/uuid"

	"eboot"
	"eboot/api"
	"eboot/fsm"
)

var _ api.Gatekeeper = (*Agent)(nil)

// TokenOf returns the token with this text, as the state that this server serves has it. That a
// server does not know it which has not heard from the cluster since it started says nothing of
// the token: eboot.ErrUnavailable, so that whoever has several servers asks the next.
func (a *Agent) TokenOf(text string) (eboot.Token, error) {
	id, digest, err := eboot.ParseToken(text)
	if err != nil {
		return eboot.Token{}, fmt.Errorf("token: %v: %w", err, eboot.ErrUnauthenticated)
	}
	state := a.view.State()
	t, ok := state.Token(id)
	if !ok && (state.Cluster() == "" || !a.boot.freshness.confirmed()) {
		return eboot.Token{}, fmt.Errorf("token: this server does not know it, and has not heard from a cluster since it started; ask one that is in it: %w", eboot.ErrUnavailable)
	}
	if !ok || subtle.ConstantTimeCompare(t.Digest[:], digest[:]) != 1 {
		return eboot.Token{}, fmt.Errorf("token: this server knows none with id %s and this secret; was it revoked?: %w", id, eboot.ErrUnauthenticated)
	}
	if t.Expired(a.now()) {
		return eboot.Token{}, fmt.Errorf("token %s: expired on %s: %w", t.Name, t.ExpiresAt.UTC().Format("2006-01-02 15:04 MST"), eboot.ErrUnauthenticated)
	}
	return t, nil
}

// OperatorOf returns who a certificate is of, and what it grants.
func (a *Agent) OperatorOf(certificates []*x509.Certificate) (string, eboot.Role, error) {
	if a.secrets.credentials == nil {
		return "", "", fmt.Errorf("this server has no certificates to judge others by: %w", eboot.ErrUnauthenticated)
	}
	name, role, err := a.secrets.credentials.CheckOperator(certificates)
	if err != nil {
		return "", "", fmt.Errorf("%v: %w", err, eboot.ErrUnauthenticated)
	}
	return name.Name, role, nil
}

// Tokens returns all tokens by name.
func (a *Agent) Tokens() []eboot.Token { return a.view.State().Tokens() }

// CreateToken enters a token.
func (a *Agent) CreateToken(ctx context.Context, w api.Write, t eboot.Token) (api.WriteResult, error) {
	if t.Expired(a.now()) {
		return api.WriteResult{}, fmt.Errorf("token %s: expires in the past: %w", t.Name, eboot.ErrInvalid)
	}
	if eboot.CheckTokenID(t.Name) == nil {
		return api.WriteResult{}, fmt.Errorf("token %s: its name looks like the id of a token; choose another: %w", t.Name, eboot.ErrInvalid)
	}
	return a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.CreateToken{Header: h, Token: t} })
}

// RevokeToken takes a token out, by its id or its name.
func (a *Agent) RevokeToken(ctx context.Context, w api.Write, token string) (api.WriteResult, error) {
	return a.write(ctx, w, func(h fsm.Header) fsm.Command {
		if eboot.CheckTokenID(token) == nil {
			return fsm.RevokeToken{Header: h, ID: token}
		}
		return fsm.RevokeToken{Header: h, Name: token}
	})
}

// note has a deed of an operator entered into the replicated events that changes no state. Where that
// cannot be, the deed stands in the log of this server alone: it is done, or it must not wait
// for a leader.
func (a *Agent) note(ctx context.Context, by eboot.Actor, kind eboot.EventKind, text string) {
	if by.IsZero() {
		return
	}
	_, err := a.write(ctx, api.Write{RequestID: uuid.NewString(), By: by}, func(h fsm.Header) fsm.Command {
		return fsm.Note{Header: h, Kind: kind, Text: text}
	})
	if err != nil {
		a.logger.Warn("a deed of an operator is not in the events", "by", by, "kind", kind, "deed", text, "error", err)
	}
}
