package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"eboot"
)

// Role is what a certificate is for.
type Role string

// Roles.
const (
	Server   Role = "server"   // takes part in the cluster
	Operator Role = "operator" // uses the admin API
)

// ParseRole reads a role; eboot.ErrInvalid for what is none.
func ParseRole(s string) (Role, error) {
	if r := Role(s); r == Server || r == Operator {
		return r, nil
	}
	return "", fmt.Errorf("role %q: want %s or %s: %w", abbreviate(s), Server, Operator, eboot.ErrInvalid)
}

// Name is who a certificate belongs to.
type Name struct {
	Cluster string
	Role    Role
	Name    string // of the server or the operator, for people
}

const scheme = "eboot"

// Check reports whether n can stand in a certificate; the error wraps eboot.ErrInvalid.
func (n Name) Check() error {
	if err := checkCluster(n.Cluster); err != nil {
		return err
	}
	if _, err := ParseRole(string(n.Role)); err != nil {
		return err
	}
	return eboot.CheckName("name", n.Name)
}

// checkCluster also refuses the few names that the host of a URI in a certificate
// cannot have (crypto/x509, domainNameValid).
func checkCluster(cluster string) error {
	if err := eboot.CheckName("cluster name", cluster); err != nil {
		return err
	}
	if strings.HasSuffix(cluster, ".") || strings.Contains(cluster, "..") {
		return fmt.Errorf("cluster name %q: cannot stand in a certificate, for its dots: %w", cluster, eboot.ErrInvalid)
	}
	return nil
}

// URI is the name as a certificate has it.
func (n Name) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: n.Cluster, Path: "/" + string(n.Role) + "/" + n.Name}
}

// String is the URI.
func (n Name) String() string { return n.URI().String() }

// ParseName reads what URI gives, and nothing else; eboot.ErrInvalid.
func ParseName(u *url.URL) (Name, error) {
	parts := strings.Split(u.Path, "/")
	if u.Scheme != scheme || len(parts) != 3 {
		return Name{}, fmt.Errorf("%q: want eboot://CLUSTER/ROLE/NAME: %w", abbreviate(u.String()), eboot.ErrInvalid)
	}
	n := Name{Cluster: u.Host, Role: Role(parts[1]), Name: parts[2]}
	if err := n.Check(); err != nil {
		return Name{}, err
	}
	if n.String() != u.String() { // a user, a port, a query …
		return Name{}, fmt.Errorf("%q: want %s: %w", abbreviate(u.String()), n, eboot.ErrInvalid)
	}
	return n, nil
}

// NameOf returns whom a certificate names. It does not check the certificate otherwise.
// The error wraps eboot.ErrInvalid: it names nobody, or more than one.
func NameOf(c *x509.Certificate) (Name, error) {
	var found []*url.URL
	for _, u := range c.URIs {
		if u.Scheme == scheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return Name{}, fmt.Errorf("certificate of %q: want one name of the form eboot://CLUSTER/ROLE/NAME among its URIs, not %d: %w",
			abbreviate(c.Subject.String()), len(found), eboot.ErrInvalid)
	}
	n, err := ParseName(found[0])
	if err != nil {
		return Name{}, fmt.Errorf("certificate of %q: %w", abbreviate(c.Subject.String()), err)
	}
	return n, nil
}

func abbreviate(s string) string {
	if len(s) > 120 {
		return s[:117] + "..."
	}
	return s
}
