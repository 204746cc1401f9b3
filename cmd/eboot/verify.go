package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
	"eboot/signature"
)

// verified is what `eboot bundle verify` found.
type verified struct {
	api.VerifyProgress
	Signatures []verifiedBundle `json:"signatures,omitempty"` // with keys to check them, one for each ERTS version
}

// verifiedBundle says whose signatures of a bundle are right, by keys that are known here.
type verifiedBundle struct {
	ERTS     string        `json:"erts"`
	Manifest eboot.Digest  `json:"manifest"`
	Signers  []eboot.KeyID `json:"signers"`
	Problem  string        `json:"problem,omitempty"`
}

func (v verified) ok() bool {
	for _, b := range v.Signatures {
		if b.Problem != "" {
			return false
		}
	}
	return v.OK()
}

func (c *command) bundleVerify() *cobra.Command {
	var keys []string
	var threshold int
	cmd := &cobra.Command{
		Use: "verify NAME@VERSION", Short: "Have the server hash every blob of a bundle, and check its signatures here (exit 1 when something is wrong)", Args: arguments(1, 1),
		ValidArgsFunction: c.complete(bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ref, err := eboot.ParseRef(args[0])
			if err != nil {
				return err
			}
			trusted, err := readTrust(keys, threshold)
			if err != nil {
				return err
			}
			var result verified
			if trusted.Demands() {
				if result.Signatures, err = verifySignatures(ctx, client, ref, trusted); err != nil {
					return err
				}
			}
			checking := c.progress("verifying")
			result.VerifyProgress, err = client.VerifyBundle(ctx, ref, func(p api.VerifyProgress) { checking.set(int64(p.Checked), int64(p.Total)) })
			checking.done()
			if err != nil {
				return err
			}
			if err := c.print(result, func(w io.Writer) error { return result.text(w, ref) }); err != nil {
				return err
			}
			if !result.ok() {
				return errNegative
			}
			return nil
		}),
	}
	cmd.Flags().StringArrayVar(&keys, "trust", nil, "public key of a signer whose signature counts; may be repeated (default: signatures are not checked)")
	cmd.Flags().IntVar(&threshold, "threshold", 1, "with --trust: how many of the keys must have signed")
	return cmd
}

func readTrust(paths []string, threshold int) (signature.Trust, error) {
	if len(paths) == 0 && threshold != 1 {
		return signature.Trust{}, fmt.Errorf("--threshold %d: goes with --trust: %w", threshold, eboot.ErrInvalid)
	}
	var keys []signature.PublicKey
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return signature.Trust{}, err
		}
		k, err := signature.ParsePublicKey(text)
		if err != nil {
			return signature.Trust{}, fmt.Errorf("--trust %s: %w", path, err)
		}
		keys = append(keys, k)
	}
	return signature.NewTrust(keys, threshold)
}

// verifySignatures trusts no server: the signatures are checked with keys of this machine,
// and that the signed digest is the manifest's, here too.
func verifySignatures(ctx context.Context, client *api.Client, ref eboot.Ref, trusted signature.Trust) ([]verifiedBundle, error) {
	bundles, err := publishedBundles(ctx, client, ref.String(), "")
	if err != nil {
		return nil, err
	}
	var checked []verifiedBundle
	for _, b := range bundles {
		v := verifiedBundle{ERTS: b.ERTS, Manifest: b.Manifest, Signers: []eboot.KeyID{}}
		signers, err := trusted.Check(b)
		v.Signers = append(v.Signers, signers...)
		if err == nil {
			_, err = client.Manifest(ctx, b)
		}
		switch {
		case errors.Is(err, eboot.ErrDenied), errors.Is(err, eboot.ErrInvalid), errors.Is(err, eboot.ErrDamaged):
			v.Problem = err.Error()
		case err != nil:
			return nil, err
		}
		checked = append(checked, v)
	}
	return checked, nil
}

func (v verified) text(w io.Writer, ref eboot.Ref) error {
	for _, b := range v.Signatures {
		if b.Problem != "" {
			fmt.Fprintf(w, "bad signatures: %s\n", b.Problem)
			continue
		}
		var names []string
		for _, k := range b.Signers {
			names = append(names, k.String())
		}
		fmt.Fprintf(w, "%s for ERTS %s: manifest %s is signed by key %s\n", ref, b.ERTS, b.Manifest.Short(), strings.Join(names, ", "))
	}
	for _, d := range v.Damaged {
		fmt.Fprintf(w, "damaged %s: %s\n", d.Digest, d.Reason)
	}
	for _, d := range v.Missing {
		fmt.Fprintf(w, "missing %s\n", d)
	}
	if v.OK() {
		_, err := fmt.Fprintf(w, "%s: all %d blobs match their digests\n", ref, v.Total)
		return err
	}
	_, err := fmt.Fprintf(w, "%s: %d blobs damaged, %d missing, of %d; publish the bundle again to heal it\n", ref, len(v.Damaged), len(v.Missing), v.Total)
	return err
}
