package vps

// reasons say of each code, to a customer, why something could not be done: no
// host paths, no internals, nothing that only an operator can do.
var reasons = map[Code]map[Language]string{
	CodeUnauthenticated:       {English: "The request came without a valid token.", French: "La demande ne portait pas de jeton valable."},
	CodeForbidden:             {English: "The request is not permitted.", French: "La demande n'est pas permise."},
	CodeNotFound:              {English: "What it is about is no longer there.", French: "Ce dont il s'agit n'existe plus."},
	CodeOptionRequired:        {English: "The snapshot option of the VPS is not active.", French: "L'option snapshot du VPS n'est pas active."},
	CodeSnapshotExists:        {English: "The VPS already has its one snapshot.", French: "Le VPS a déjà son snapshot ; il ne peut en avoir qu'un."},
	CodeOperationInProgress:   {English: "Another operation of the VPS was not finished.", French: "Une autre opération du VPS n'était pas terminée."},
	CodeVPSChanged:            {English: "The VPS or its disks were changed meanwhile, or are in use by something else.", French: "Le VPS ou ses disques ont été modifiés entre-temps, ou sont utilisés par autre chose."},
	CodeConfirmationRequired:  {English: "The request was not confirmed.", French: "La demande n'a pas été confirmée."},
	CodePreconditionFailed:    {English: "What was to be changed had been changed meanwhile.", French: "Ce qui devait être modifié l'avait été entre-temps."},
	CodeInvalid:               {English: "The request asks for what cannot be.", French: "La demande porte sur une chose impossible."},
	CodeUnsupportedDisk:       {English: "The disks of the VPS do not permit it.", French: "Les disques du VPS ne le permettent pas."},
	CodeInsufficientSpace:     {English: "There is not enough space on the host.", French: "L'espace disque de l'hôte ne suffit pas."},
	CodeHypervisorUnavailable: {English: "The host did not answer.", French: "L'hôte n'a pas répondu."},
	CodeGuestUnresponsive:     {English: "The guest agent in the VPS did not answer.", French: "L'agent invité du VPS n'a pas répondu."},
	CodeRateLimited:           {English: "There were too many requests.", French: "Il y a eu trop de demandes."},
	CodeInternal:              {English: "An internal error occurred.", French: "Une erreur interne s'est produite."},
}

// In says to a customer why something could not be done.
func (c Code) In(l Language) string { return reasons[c][l] }

// frenchRemedies say to a customer what to do next, where they can do something
// themselves.
var frenchRemedies = map[Code]string{
	CodeGuestUnresponsive: "Vérifiez qemu-guest-agent dans le VPS, ou autorisez un snapshot sans lui.",
}

// frenchSupport is what to do next in every other case.
const frenchSupport = "Refaites la demande plus tard ; si elle échoue encore, contactez l'assistance."

// In returns an operation as a customer reads it in a language.
func (o Operation) In(l Language) Operation {
	if l != French {
		return o
	}
	o.Result, o.Progress.Note = frenchResult(o.Result), frenchResult(o.Progress.Note)
	if o.Error != nil {
		detail, remedy := o.Error.Code.french()
		o.Error = &Error{Code: o.Error.Code, Detail: detail, Remedy: remedy}
	}
	return o
}

// In returns an operation as a customer reads it in a language.
func (o OperationEvent) In(l Language) OperationEvent {
	if l != French {
		return o
	}
	o.Result = frenchResult(o.Result)
	if o.Code != "" {
		o.Detail, o.Remedy = o.Code.french()
	}
	return o
}

func (c Code) french() (detail, remedy string) {
	if remedy = frenchRemedies[c]; remedy == "" {
		remedy = frenchSupport
	}
	return c.In(French), remedy
}
