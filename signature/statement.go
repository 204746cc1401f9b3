package signature

import (
	"bytes"
	"fmt"
	"strings"

	"eboot"
)

// statementHead is the first line: a signature of something else is never one of a bundle.
const statementHead = "eboot bundle signature v1"

// MaxStatementSize bounds a statement in bytes.
const MaxStatementSize = 16 << 10

// Statement returns what the signers of b sign. It covers what decides which code a slave
// runs and by which name it is asked for; sizes and times follow from the manifest, or do not matter.
// eboot.ErrInvalid: b is no bundle, or a path of it would not be one line.
func Statement(b eboot.Bundle) ([]byte, error) {
	if err := b.Ref().Check(); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if err := eboot.CheckERTS(b.ERTS); err != nil {
		return nil, fmt.Errorf("statement of %s: %w", b.Ref(), err)
	}
	if b.Manifest.IsZero() {
		return nil, fmt.Errorf("statement of %s: no manifest: %w", b.Ref(), eboot.ErrInvalid)
	}
	for _, path := range []string{b.BootScript, b.SysConfig} {
		// Else two bundles could have one statement.
		if !eboot.IsOneLine(path) {
			return nil, fmt.Errorf("statement of %s: path %q cannot be signed, it is not one line of text: %w", b.Ref(), path, eboot.ErrInvalid)
		}
	}
	return fmt.Appendf(nil, "%s\nname: %s\nversion: %s\nerts: %s\nmanifest: %s\nboot_script: %s\nsys_config: %s\n",
		statementHead, b.Name, b.Version, b.ERTS, b.Manifest, b.BootScript, b.SysConfig), nil
}

// ParseStatement reads what Statement wrote: of the bundle, the fields that are signed.
// eboot.ErrInvalid: it is no statement, or differs from one in a single byte.
func ParseStatement(text []byte) (eboot.Bundle, error) {
	var b eboot.Bundle
	if len(text) > MaxStatementSize {
		return b, fmt.Errorf("statement: more than %d bytes: %w", MaxStatementSize, eboot.ErrTooLarge)
	}
	head, rest, _ := strings.Cut(string(text), "\n")
	if head != statementHead {
		return b, fmt.Errorf("statement: does not begin with %q: %w", statementHead, eboot.ErrInvalid)
	}
	var manifest string
	for _, field := range []struct {
		name string
		into *string
	}{
		{"name", &b.Name}, {"version", &b.Version}, {"erts", &b.ERTS}, {"manifest", &manifest},
		{"boot_script", &b.BootScript}, {"sys_config", &b.SysConfig},
	} {
		line, after, _ := strings.Cut(rest, "\n")
		value, ok := strings.CutPrefix(line, field.name+": ")
		if !ok {
			return b, fmt.Errorf("statement: want a line %q: %w", field.name+": …", eboot.ErrInvalid)
		}
		*field.into, rest = value, after
	}
	var err error
	if b.Manifest, err = eboot.ParseDigest(manifest); err != nil {
		return b, fmt.Errorf("statement: %w", err)
	}
	again, err := Statement(b)
	if err != nil {
		return b, err
	}
	if !bytes.Equal(again, text) {
		return b, fmt.Errorf("statement of %s: is not written as eboot writes it: %w", b.Ref(), eboot.ErrInvalid)
	}
	return b, nil
}

// Comment is the trusted comment of signatures that are made here.
func Comment(b eboot.Bundle) string {
	return fmt.Sprintf("eboot bundle %s erts %s manifest %s", b.Ref(), b.ERTS, b.Manifest)
}
