package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"eboot"
)

// BundleSignatures is the body of POST /v1/bundles/{ref}/signatures.
type BundleSignatures struct {
	ERTS       string            `json:"erts"`
	Manifest   eboot.Digest      `json:"manifest"` // that was signed
	Signatures []eboot.Signature `json:"signatures"`
}

func (s *Server) signBundle(ctx context.Context, w Write, ref eboot.Ref, body BundleSignatures) (WriteResult, error) {
	return s.backend.SignBundle(ctx, w, ref, body)
}

// manifest sends the manifest as it is stored, so that whoever gets it can hash it.
func (s *Server) manifest(w http.ResponseWriter, r *http.Request) error {
	ref, err := pathRef(r)
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	data, err := s.backend.Manifest(r.Context(), ref, r.URL.Query().Get("erts"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := w.Write(data); err != nil {
		s.logger.Debug("manifest not delivered", "error", err)
	}
	return nil
}

// SignBundle adds signatures to a bundle. eboot.ErrDenied: the server trusts other keys.
func (c *Client) SignBundle(ctx context.Context, ref eboot.Ref, s BundleSignatures) (r WriteResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: bundlePath(ref) + "/signatures", body: s, write: true}, &r)
}

// Manifest returns the manifest of b as some server stores it. eboot.ErrDamaged: it does not
// hash to what b says.
func (c *Client) Manifest(ctx context.Context, b eboot.Bundle) ([]byte, error) {
	response, server, err := c.open(ctx, call{method: "GET", path: bundlePath(b.Ref()) + "/manifest", query: url.Values{"erts": {b.ERTS}}})
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, eboot.MaxManifestSize+1))
	if err != nil {
		return nil, fmt.Errorf("server %s: manifest: %v: %w", server, err, eboot.ErrUnreachable)
	}
	if d := eboot.DigestOf(data); d != b.Manifest {
		return nil, fmt.Errorf("server %s: manifest of %s for ERTS %s: hashes to %s, not to %s: %w", server, b.Ref(), b.ERTS, d.Short(), b.Manifest.Short(), eboot.ErrDamaged)
	}
	return data, nil
}
