package api

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"eboot"
)

// signAnswers keeps the signatures that it is given.
type signAnswers struct {
	Backend
	got      BundleSignatures
	manifest []byte
}

func (*signAnswers) Fresh(context.Context) error { return nil }

func (b *signAnswers) SignBundle(_ context.Context, w Write, ref eboot.Ref, s BundleSignatures) (WriteResult, error) {
	if w.RequestID == "" || ref.Name != "app" {
		return WriteResult{}, eboot.ErrDenied
	}
	b.got = s
	return WriteResult{Generation: 7, Changed: true}, nil
}

func (b *signAnswers) Manifest(_ context.Context, _ eboot.Ref, erts string) ([]byte, error) {
	if erts != "15.0" {
		return nil, eboot.ErrNotFound
	}
	return b.manifest, nil
}

func TestSignaturesCrossTheWire(t *testing.T) {
	backend := &signAnswers{manifest: []byte("a manifest")}
	server := httptest.NewServer(NewServer(ServerOptions{Backend: backend, Metrics: http.NotFoundHandler(), Logger: hclog.NewNullLogger()}).handler(DoorInsecure))
	defer server.Close()
	client, err := NewClient(ClientOptions{Addresses: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b := eboot.Bundle{Name: "app", Version: "1+x", ERTS: "15.0", Manifest: eboot.DigestOf(backend.manifest)}
	want := BundleSignatures{ERTS: b.ERTS, Manifest: b.Manifest, Signatures: []eboot.Signature{
		{KeyID: eboot.KeyID{1, 2, 3}, Legacy: true, Signature: bytes.Repeat([]byte{1}, 64), Comment: "a\tcomment", Sealed: bytes.Repeat([]byte{2}, 64)},
	}}
	if r, err := client.SignBundle(t.Context(), b.Ref(), want); err != nil || r.Generation != 7 || !cmp.Equal(backend.got, want) {
		t.Errorf("%+v, %v\n%s", r, err, cmp.Diff(want, backend.got))
	}
	if _, err := client.SignBundle(t.Context(), eboot.Ref{Name: "other", Version: "1"}, want); !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("refused: %v", err)
	}

	// A server may say anything of a bundle; its manifest must hash to that.
	if got, err := client.Manifest(t.Context(), b); err != nil || !bytes.Equal(got, backend.manifest) {
		t.Errorf("manifest %q, %v", got, err)
	}
	backend.manifest = []byte("another manifest")
	if _, err := client.Manifest(t.Context(), b); !errors.Is(err, eboot.ErrDamaged) {
		t.Errorf("another manifest: %v", err)
	}
	b.ERTS = "14.0"
	if _, err := client.Manifest(t.Context(), b); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("no such bundle: %v", err)
	}
}
