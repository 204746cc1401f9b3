package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
	"eboot/ingest"
	"eboot/signature"
)

// minisig is what minisign adds to the name of the file that was signed.
const minisig = ".minisig"

// signFlags are the flags of `bundle sign`.
type signFlags struct {
	key, passphraseFile string
	erts, manifest      string
	statement, out      string
	signatures          []string
	statements          string
}

func (c *command) bundleSign() *cobra.Command {
	var flags signFlags
	cmd := &cobra.Command{
		Use: "sign [NAME@VERSION]", Short: "Sign a bundle here and send the signature, or do one of these where the other cannot be done",
		Long: `Sign a bundle. The secret key never leaves this machine.

  eboot bundle sign NAME@VERSION --key FILE            ask a server what the bundle is, sign that, send the signature
  eboot bundle sign NAME@VERSION --statements DIR      write what is to be signed, to be carried to another machine
  eboot bundle sign --statement FILE --key FILE        sign that there: writes FILE.minisig; needs no server
  eboot bundle sign --signature FILE.minisig           send it, with FILE beside it`,
		Args: arguments(0, 1), ValidArgsFunction: c.complete(bundleNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			send := c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
				if len(args) == 0 {
					return c.sendSignatures(ctx, client, flags)
				}
				return c.signPublished(ctx, client, args[0], flags)
			})
			ways := 0
			for _, given := range []bool{len(args) > 0, flags.statement != "", len(flags.signatures) > 0} {
				if given {
					ways++
				}
			}
			switch {
			case ways != 1:
				return fmt.Errorf("sign: want one of NAME@VERSION, --statement FILE and --signature FILE: %w", eboot.ErrInvalid)
			case len(args) > 0 && (flags.key == "") == (flags.statements == ""), flags.statement != "" && flags.key == "":
				return fmt.Errorf("sign: want --key FILE: %w", eboot.ErrInvalid)
			case flags.statement != "":
				return c.signStatement(cmd.Context(), flags)
			}
			return send(cmd, args)
		},
	}
	cmd.Flags().StringVar(&flags.key, "key", "", "secret key, of `eboot keygen bundle` or minisign")
	cmd.Flags().StringVar(&flags.passphraseFile, "passphrase-file", "", "file whose first line opens the key (default: asked for)")
	cmd.Flags().StringVar(&flags.erts, "erts", "", "only for this ERTS version (default: all)")
	cmd.Flags().StringVar(&flags.manifest, "manifest", "", "sign nothing but this manifest: its digest, as `bundle publish` printed it")
	cmd.Flags().StringVar(&flags.statement, "statement", "", "sign this file and send nothing")
	cmd.Flags().StringVar(&flags.out, "out", "", "with --statement: where the signature goes (default: FILE.minisig)")
	cmd.Flags().StringArrayVar(&flags.signatures, "signature", nil, "send this signature, of the file of that name without .minisig; may be repeated")
	cmd.Flags().StringVar(&flags.statements, "statements", "", "write the statements of the bundle to this directory and sign nothing")
	return c.write(cmd)
}

// secretKey reads a key, and asks for its passphrase if it has one.
func (c *command) secretKey(ctx context.Context, path, passphraseFile string) (signature.SecretKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return signature.SecretKey{}, err
	}
	key, err := signature.ParseSecretKey(text, func() ([]byte, error) {
		return c.passphrase(ctx, passphraseFile, fmt.Sprintf("passphrase of %s: ", path))
	})
	if err != nil {
		return key, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// signPublished signs what a server says a bundle is, once for each ERTS version.
func (c *command) signPublished(ctx context.Context, client *api.Client, name string, flags signFlags) error {
	var want eboot.Digest
	if flags.manifest != "" {
		// All of it: of the beginning, who can try for some hours makes another tree.
		var err error
		if want, err = eboot.ParseDigest(flags.manifest); err != nil {
			return fmt.Errorf("--manifest: %w", err)
		}
	}
	bundles, err := publishedBundles(ctx, client, name, flags.erts)
	if err != nil {
		return err
	}
	for _, b := range bundles {
		if flags.manifest != "" && b.Manifest != want {
			return fmt.Errorf("bundle %s for ERTS %s: its manifest is %s, not %s; nothing is signed: %w", b.Ref(), b.ERTS, b.Manifest, flags.manifest, eboot.ErrConflict)
		}
	}
	if flags.statements != "" {
		return c.writeStatements(flags.statements, bundles)
	}
	key, err := c.secretKey(ctx, flags.key, flags.passphraseFile)
	if err != nil {
		return err
	}
	var sent []sentSignature
	for _, b := range bundles {
		if err := c.showStatement(b); err != nil {
			return err
		}
		s, err := key.SignBundle(b)
		if err != nil {
			return err
		}
		sent = append(sent, sentSignature{b, s})
	}
	return c.send(ctx, client, sent)
}

// publishedBundles returns what was published as name, for one ERTS version or (empty) for all.
func publishedBundles(ctx context.Context, client *api.Client, name, erts string) ([]eboot.Bundle, error) {
	ref, err := eboot.ParseRef(name)
	if err != nil {
		return nil, err
	}
	details, err := client.Bundle(ctx, ref)
	if err != nil {
		return nil, err
	}
	var bundles []eboot.Bundle
	for _, d := range details {
		if d.Ref() != ref { // what is signed or checked must be what was asked for
			return nil, fmt.Errorf("bundle %s: the server answers with %s: %w", ref, d.Ref(), eboot.ErrUnavailable)
		}
		if erts == "" || d.ERTS == erts {
			bundles = append(bundles, d.Bundle)
		}
	}
	if len(bundles) == 0 {
		return nil, fmt.Errorf("bundle %s for ERTS %s: does not exist: %w", ref, erts, eboot.ErrNotFound)
	}
	return bundles, nil
}

// showStatement shows a person what is about to be signed.
func (c *command) showStatement(b eboot.Bundle) error {
	text, err := signature.Statement(b)
	if err != nil || c.json() {
		return err
	}
	_, err = c.out.Write(text)
	return err
}

// statementName is the name of the file for the statement of b.
func statementName(b eboot.Bundle) string { return fmt.Sprintf("%s-%s.statement", b.Ref(), b.ERTS) }

// writeStatements writes what is to be signed elsewhere.
func (c *command) writeStatements(dir string, bundles []eboot.Bundle) error {
	var files []string
	for _, b := range bundles {
		text, err := signature.Statement(b)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, statementName(b))
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
		files = append(files, path)
	}
	return c.print(map[string][]string{"statements": files}, func(w io.Writer) error {
		for _, path := range files {
			if _, err := fmt.Fprintf(w, "wrote %s; sign it with `eboot bundle sign --statement %s --key FILE`\n", path, path); err != nil {
				return err
			}
		}
		return nil
	})
}

// signStatement signs a file, without any server.
func (c *command) signStatement(ctx context.Context, flags signFlags) error {
	text, b, err := readStatement(flags.statement)
	if err != nil {
		return err
	}
	if err := c.showStatement(b); err != nil {
		return err
	}
	key, err := c.secretKey(ctx, flags.key, flags.passphraseFile)
	if err != nil {
		return err
	}
	s, err := key.Sign(text, signature.Comment(b))
	if err != nil {
		return err
	}
	out := flags.out
	if out == "" {
		out = flags.statement + minisig
	}
	if err := writeNew(out, 0o644, signature.Encode(s)); err != nil {
		return fmt.Errorf("signature (--out): %w", err)
	}
	return c.print(map[string]any{"signature": out, "key_id": s.KeyID}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "signed by key %s: %s\n", s.KeyID, out)
		return err
	})
}

func readStatement(path string) (text []byte, b eboot.Bundle, err error) {
	if text, err = os.ReadFile(path); err != nil {
		return nil, b, err
	}
	if b, err = signature.ParseStatement(text); err != nil {
		return nil, b, fmt.Errorf("%s: %w", path, err)
	}
	return text, b, nil
}

// sentSignature is a signature of one bundle.
type sentSignature struct {
	bundle    eboot.Bundle
	signature eboot.Signature
}

// readSignatures reads signature files, and the statements beside them.
func readSignatures(paths []string) ([]sentSignature, error) {
	var signatures []sentSignature
	for _, path := range paths {
		statement, ok := strings.CutSuffix(path, minisig)
		if !ok {
			return nil, fmt.Errorf("--signature %s: want a file whose name ends in %s, beside the statement that was signed: %w", path, minisig, eboot.ErrInvalid)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		s, err := signature.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		_, b, err := readStatement(statement)
		if err != nil {
			return nil, err
		}
		signatures = append(signatures, sentSignature{b, s})
	}
	return signatures, nil
}

func (c *command) sendSignatures(ctx context.Context, client *api.Client, flags signFlags) error {
	signatures, err := readSignatures(flags.signatures)
	if err != nil {
		return err
	}
	return c.send(ctx, client, signatures)
}

// send has the cluster keep signatures.
func (c *command) send(ctx context.Context, client *api.Client, signatures []sentSignature) error {
	var last api.WriteResult
	for _, s := range signatures {
		b := s.bundle
		result, err := client.SignBundle(ctx, b.Ref(), api.BundleSignatures{ERTS: b.ERTS, Manifest: b.Manifest, Signatures: []eboot.Signature{s.signature}})
		if err != nil {
			return err
		}
		result.Changed = result.Changed || last.Changed
		last = result
	}
	var what []string
	for _, s := range signatures {
		what = append(what, fmt.Sprintf("%s for ERTS %s by key %s", s.bundle.Ref(), s.bundle.ERTS, s.signature.KeyID))
	}
	return c.print(last, func(w io.Writer) error { return written(w, "signed "+strings.Join(what, ", "), last) })
}

// signPublish returns the signatures of what is about to be published, by ERTS version: those
// that are made here, and those that were made before.
func signPublish(bundles []eboot.Bundle, keys []signature.SecretKey, made []sentSignature) (map[string][]eboot.Signature, error) {
	signatures := map[string][]eboot.Signature{}
	for _, m := range made {
		want, err := signature.Statement(m.bundle)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(bundles, func(b eboot.Bundle) bool {
			text, err := signature.Statement(b)
			return err == nil && slices.Equal(text, want)
		}) {
			return nil, fmt.Errorf("signature of key %s: is of %s for ERTS %s, manifest %s, and not of what is to be published (%s, manifest %s): %w",
				m.signature.KeyID, m.bundle.Ref(), m.bundle.ERTS, m.bundle.Manifest.Short(), bundles[0].Ref(), bundles[0].Manifest.Short(), eboot.ErrConflict)
		}
		signatures[m.bundle.ERTS] = append(signatures[m.bundle.ERTS], m.signature)
	}
	for _, key := range keys {
		for _, b := range bundles {
			s, err := key.SignBundle(b)
			if err != nil {
				return nil, err
			}
			signatures[b.ERTS] = append(signatures[b.ERTS], s)
		}
	}
	return signatures, nil
}

// bundlesOf is what a publish of source will make, as far as it is signed.
func bundlesOf(ref eboot.Ref, source *ingest.Source) []eboot.Bundle {
	found, manifest := source.Found(), eboot.DigestOf(source.Manifest().Encode())
	var bundles []eboot.Bundle
	for _, erts := range found.ERTS {
		bundles = append(bundles, eboot.Bundle{
			Name: ref.Name, Version: ref.Version, ERTS: erts, Manifest: manifest, BootScript: found.BootScript, SysConfig: found.SysConfig,
		})
	}
	return bundles
}

// signaturesText lists who is said to have signed a bundle.
func signaturesText(w io.Writer, b eboot.Bundle) error {
	if len(b.Signatures) == 0 {
		return nil
	}
	rows := make([][]string, len(b.Signatures))
	for i, s := range b.Signatures {
		rows[i] = []string{s.KeyID.String(), strings.ReplaceAll(s.Comment, "\t", " ")}
	}
	fmt.Fprintln(w)
	return table(w, "SIGNED-BY COMMENT", rows)
}
